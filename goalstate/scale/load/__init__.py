"""Load on a region, from a workload file, by any number of workers; what came of it.

    workload file ──▶ coordinator ◀── bus ──▶ workers ──┬─ generators ──intents──▶ DPM
                        │                               └─ fleets ◀──messages── broker
                        └──▶ result directory ──▶ report, comparison, thresholds

Latency is from the *intended* start of a change, at which the schedule wanted it to be sent: what
waits since the system stalls waits in the figures too (no coordinated omission).
"""
