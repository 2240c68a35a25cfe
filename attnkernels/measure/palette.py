"""The colours of every figure: the palette of Okabe and Ito, distinct for every colour vision."""

BLUE, ORANGE, GREEN, AMBER = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PINK, SKY, BLACK, YELLOW = "#CC79A7", "#56B4E9", "#000000", "#F0E442"
INK, FAINT, GRID = "#333333", "#767676", "#e6e6e6"  # of text, of secondary text, of grid lines
