"""Where records go, a package for each kind of destination."""
