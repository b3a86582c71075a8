"""One script a format, that runs an exported folder in the format's own runtime and nothing else.

    python run_FORMAT.py FOLDER INPUTS.npz OUTPUTS.npz

INPUTS.npz has the arrays of `serving_function`'s arguments, OUTPUTS.npz gets what it returns. The
exporter checks what it wrote with them; they also show how an exported folder is used.
"""
