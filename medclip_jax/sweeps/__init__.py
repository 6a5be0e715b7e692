"""Many runs of one config: expand a grid, run or emit its units, collect what came out."""
