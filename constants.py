"""Message identifiers, binary layouts and severity words of the MRD streaming protocol."""

import struct
from enum import IntEnum

MRD_MESSAGE_INT_ID_MIN = 0
MRD_MESSAGE_INT_ID_MAX = 999
MRD_MESSAGE_EXT_ID_MIN = 1000
MRD_MESSAGE_EXT_ID_MAX = 4096


class MessageId(IntEnum):
    """The 16-bit identifier that opens every message.

    The names are those of the protocol without their ``MRD_MESSAGE_`` prefix. Identifiers between 1001 and 1023 other
    than 1008 and 1022 are deprecated: they have names so that a log can say what an outdated peer sent, and nothing
    reads or writes them.
    """

    CONFIG_FILE = 1
    CONFIG_TEXT = 2
    METADATA_XML_TEXT = 3
    CLOSE = 4
    TEXT = 5
    ISMRMRD_ACQUISITION = 1008
    ISMRMRD_IMAGE = 1022
    ISMRMRD_WAVEFORM = 1026

    ACQUISITION = 1001
    NEW_MEASUREMENT = 1002
    END_OF_SCAN = 1003
    IMAGE_CPLX_FLOAT = 1004
    IMAGE_REAL_FLOAT = 1005
    IMAGE_REAL_USHORT = 1006
    EMPTY = 1007
    ISMRMRD_IMAGE_CPLX_FLOAT = 1009
    ISMRMRD_IMAGE_REAL_FLOAT = 1010
    ISMRMRD_IMAGE_REAL_USHORT = 1011
    DICOM = 1012
    CLOUD_JOB = 1013
    GADGETCLOUD_JOB = 1014
    ISMRMRD_IMAGEWITHATTRIB_CPLX_FLOAT = 1015
    ISMRMRD_IMAGEWITHATTRIB_REAL_FLOAT = 1016
    ISMRMRD_IMAGEWITHATTRIB_REAL_USHORT = 1017
    DICOM_WITHNAME = 1018
    DEPENDENCY_QUERY = 1019
    ISMRMRD_IMAGE_REAL_SHORT = 1020
    ISMRMRD_IMAGEWITHATTRIB_REAL_SHORT = 1021
    RECONDATA = 1023


# Modules written for other servers of this kind know the identifiers as MRD_MESSAGE_CONFIG_FILE and so on.
globals().update({f"MRD_MESSAGE_{member.name}": member for member in MessageId})

# Severity words of TEXT messages, padded to eight characters; a space and the text follow.
MRD_LOGGING_DEBUG = "DEBUG   "
MRD_LOGGING_INFO = "INFO    "
MRD_LOGGING_WARNING = "WARNING "
MRD_LOGGING_ERROR = "ERROR   "
MRD_LOGGING_CRITICAL = "CRITICAL"

# Begins the warning that the default config runs instead of the one that the client asked for.
NO_SUCH_MODULE = "there is no module"

IDENTIFIER = struct.Struct("<H")
TEXT_LENGTH = struct.Struct("<I")
ATTRIBUTES_LENGTH = struct.Struct("<Q")
CONFIG_FILE_NAME = struct.Struct("<1024s")
