"""Random streams by name, importance draws, simulation draws, and the jackknife over halves of them."""
