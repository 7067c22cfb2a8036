"""Code that test files share. It is no test itself."""
