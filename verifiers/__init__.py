"""How answers are judged. Nothing is imported here: a sandbox's process begins with this file."""
