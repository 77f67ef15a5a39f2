"""Measures models on devices that are reached by SSH.

    --on text -> named_places (devices_file, address) -> remote_place -> connection -> the device

`arrival` is what runs there first and last, `keeper` what stays there for a run and carries out the jobs of the sampler,
`shipment` what goes there of a model, `sending` sends it once, and `failures` how what goes wrong is told.
"""
