"""Teams, their members, and the labels that they buy."""
