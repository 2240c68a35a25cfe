"""The contract of the operators, and nothing above it.

A module imports only modules that come before it:

    codes      the table of activations; the numbers that Python and C++ share
    signature  the arguments of every operator; the options of a call
    failures   errors of the operators as Python's
    shapes     leading shapes, dtypes of the arithmetic, masks
    dropout    Philox, the counter-based generator of dropout's masks
    seed       the seed of dropout, also under a trace
    formula    (E1)-(E3) in PyTorch's operations: the reference mathematics
    plain      the operators in terms of the formula, for derivatives that have no kernel
    fakes      shapes of the results, for tracing
    vmap       rules of torch.func.vmap
    schema     `define` makes a backend's operators; `implement` gives them Python functions
    forward_mode  tangents by the fused operators
    autograd   derivatives: first, second, and in forward mode

A backend with kernels calls `schema.define` and `autograd.differentiable` (through
`backends.fused`).
"""
