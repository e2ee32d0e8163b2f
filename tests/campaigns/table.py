"""Each campaign and its full count."""

from tests.campaigns.canaries import canaries
from tests.campaigns.clinic import cut_uploads, dicom_objects, identical_creations, killed_servers
from tests.campaigns.documented import documented_answers
from tests.campaigns.history import million_audit_rows, mutated_audit_chains
from tests.campaigns.hostile import fuzzed_requests, half_open_and_slow_clients, hostile_names
from tests.campaigns.integrity import damaged_blobs, receipts_of_strangers
from tests.campaigns.lines import broken_lines, kills_under_load, racing_patches, takeovers
from tests.campaigns.walk import random_walk

CAMPAIGNS = {
    cut_uploads: 1000,
    killed_servers: 100,
    identical_creations: 1000,
    dicom_objects: 1000,
    broken_lines: 1000,
    takeovers: 500,
    racing_patches: 1000,
    kills_under_load: 100,
    fuzzed_requests: 100_000,
    hostile_names: 2000,
    half_open_and_slow_clients: 1200,
    million_audit_rows: 1_000_000,
    mutated_audit_chains: 10_000,
    damaged_blobs: 1000,
    receipts_of_strangers: 10_000,
    documented_answers: 20_000,
    canaries: 100_000,
    random_walk: 100_000,
}
