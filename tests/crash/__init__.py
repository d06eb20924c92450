"""What is left after a kill -9 or a power loss, at moments drawn from seeds: nothing wrong, and little is lost.

    make test ARGS=tests/crash            # 40 kills and 30 power losses, with the same seeds in every run
    make crash-all                        # 200 kills and 300 power losses, with other seeds each time
    CRASH_SEED=17 make test ARGS=...      # one seed, which a failure names

A seed draws every choice that a test makes; which thread runs when is nobody's choice. A kill at a call to the disk is
found again, one at a moment of time more or less.
"""
