"""Weight inheritance: a student's first weights are slices of its teacher's, fitted in closed form to the teacher's maps.

`channels` finds which channels of a network must stay together, `matching` gives each channel of a student its channel of
the teacher, `slices` copies the weights, `fit` solves each layer by ridge regression.
"""
