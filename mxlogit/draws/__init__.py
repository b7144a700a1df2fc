"""Random streams, importance draws, simulation draws, and the jackknife over halves of the draws."""
