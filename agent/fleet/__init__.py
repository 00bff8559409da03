"""The planner process: workloads in, NodeWarmups out."""
