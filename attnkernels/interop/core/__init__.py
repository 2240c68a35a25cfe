"""The machinery that every library's file is read by."""
