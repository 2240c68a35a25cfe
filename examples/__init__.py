"""Train and measure the systems that made attention famous, one command each."""
