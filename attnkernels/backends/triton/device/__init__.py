"""The device code. Every file is one idea; docs/math.md has the equations that they cite."""
