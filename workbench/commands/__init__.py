"""The commands of ``workbench``, a module an area; each is imported only when it is called."""
