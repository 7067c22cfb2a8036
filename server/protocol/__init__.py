"""The bodies that clients send and get, one module per family of routes. They hold no logic except
validation."""
