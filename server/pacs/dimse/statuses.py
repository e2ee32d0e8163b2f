"""The one table from our error codes to C-STORE statuses (PS3.4 Annex B.2.3, PS3.7 Annex C)."""

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
DATA_SET_MISMATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
PROCESSING_FAILURE = 0x0110
NOT_AUTHORIZED = 0x0124

# senders repeat A7xx and give up on the others: so only what may go better later is A7xx
BY_CODE: dict[str, int] = {
    "NOT_DICOM": CANNOT_UNDERSTAND,
    "DICOM_REJECTED": CANNOT_UNDERSTAND,
    "SOP_INSTANCE_CONFLICT": 0xC001,
    "PATIENT_MISMATCH": 0xC002,
    "POLICY_REJECTED": NOT_AUTHORIZED,
    "STORAGE_FULL": OUT_OF_RESOURCES,
    "STORAGE_IO": OUT_OF_RESOURCES,
    "INGEST_TIMEOUT": OUT_OF_RESOURCES,
    "INGEST_CRASH": OUT_OF_RESOURCES,
    "INTERNAL": OUT_OF_RESOURCES,
    "insufficient_storage": OUT_OF_RESOURCES,
    "storage_unavailable": OUT_OF_RESOURCES,
    "server_shutdown": OUT_OF_RESOURCES,
}


def status_of(code: str) -> int:
    """The C-STORE status for an error code; what the table does not know is a processing failure."""
    return BY_CODE.get(code, PROCESSING_FAILURE)
