"""The systems that made attention famous, each trained and measured by one command."""
