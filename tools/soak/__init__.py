"""Random cases of every public function against float64, for as long as one lets them run."""
