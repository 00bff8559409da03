"""GPU verdict from NVML, asked in a killable child."""
