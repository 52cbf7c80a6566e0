"""Weight inheritance: a student starts with slices of its teacher's weights, fitted in closed form to its maps.

`channels` finds which channels of a network must stay together, `matching` gives each channel of a student its
channel of the teacher, `slices` copies the weights, `fit` solves each layer by ridge regression.
"""
