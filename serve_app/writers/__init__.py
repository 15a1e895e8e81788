"""Writers of stories other than the fixed rules. Know no node, no store, no Ray."""
