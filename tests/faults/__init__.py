"""The fault table: what a mirror makes of everything that an upstream can do wrong.

A row is one fault (`troubles`), moment, audience and kind (`grammar`), by name `reset:middle:many:blob`. Which go
together is told in `constraints`, with a reason for each that is left out; `tests.pairs` chooses few rows in which
every two values meet that can meet, and these are the tests of the gate. `scene` plays a row: an upstream (whose side
`stage` is), a mirror and `clients` of its own, the trouble, a look at the cache, and the request after the trouble.
What may come of it is told by `expectations`, from the design; `judgement` compares. `runner` plays many at a time.

    pytest tests/faults -k "reset and blob"                 # of the rows in the gate
    python -m tests.faults reset:middle:many:blob           # any row, with the mirror's log lines
    make faults-all                                         # all of them; notes `table.json` for docs/reliability.md

A fault that the fake upstream learns goes into `troubles`. Write its rule before looking at what happens; where the two
differ, decide who is right. Then `make faults-all`.
"""
