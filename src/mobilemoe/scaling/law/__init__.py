"""Laws of loss: their forms, tables of runs, fits with intervals, comparisons of laws."""
