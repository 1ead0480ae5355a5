"""Runs reference vectors through the project's objectives: `python -m tests.conformance FILE ...`.

An adapter is a module of this package that defines

    OBJECTIVES: Mapping[str, Adapter] = {"dpo": run_pairs, ...}

The keys are what vector files name as their `objective`. A value is a function
`run(case, *, beta, ...)` whose keyword arguments are the `params` it understands, with the defaults
of the format. It reads inputs with `case.floats`, `case.ints` and `case.bools`, calls the project's
objective, and returns a dictionary under the names of `expected`: `loss` (a scalar that carries
gradient), `per_example`, `metrics` and any intermediates, as tensors, numbers or nested lists.

The runner does the rest: it takes the gradient of `loss` with respect to every input that
`expected.grads` names, compares each expected value at the file's tolerance, and lists what an
adapter does not return as unchecked. A new family of vectors takes one adapter file and no more.
"""
