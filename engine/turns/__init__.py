"""An engine for requests that take turns, such as images that are enlarged tile by tile."""
