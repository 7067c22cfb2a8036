"""What tasks with pictures share."""
