"""goalstate side by side with what people use instead, on the same work.

`section` is the measurement, `systems` the list of what is compared; each system is a module behind
`base.Peer`, and `runner` has one do the work.
"""
