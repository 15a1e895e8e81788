"""The application: deployments, models, command line. Knows every room; nobody knows it."""
