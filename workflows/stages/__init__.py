"""One async function per stage of a film: values and ports in, an Artifact out."""
