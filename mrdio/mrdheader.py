"""The MRD header of a session: XML text to `ismrmrd.xsd.ismrmrdHeader`.

Files of older ismrmrd versions differ from today's schema in details (elements that came later are absent, others are
unknown or out of their list of values). Such a header is read all the same: absent elements become None.
"""

import dataclasses
import logging
import re
import warnings
from typing import Any

from ismrmrd import xsd
from xsdata.exceptions import ConverterError, ConverterWarning, ParserError
from xsdata.formats.dataclass.context import XmlContext
from xsdata.formats.dataclass.parsers import XmlParser
from xsdata.formats.dataclass.parsers.config import ParserConfig

from mrdio.codec import has_document_type
from mrdio.limits import Limits

logger = logging.getLogger(__name__)

NAMESPACE = "http://www.ismrm.org/ISMRMRD"

# The root element, behind comments and processing instructions; possessive, so that no text makes it try again.
_IS_HEADER = re.compile(r"(?>\s+|<!--(?>.*?-->)|<\?(?>.*?\?>))*+<(?:[\w.-]++:)?ismrmrdHeader[\s/>]", re.DOTALL)

# A value outside its list stays text; the lenient reading below reports it, so xsdata need not warn as well.
warnings.filterwarnings("ignore", category=ConverterWarning)

_CONTEXT = XmlContext()  # keeps what it learns of the classes from one header to the next


def _create_with_gaps(header_class: type, values: dict[str, Any]) -> Any:
    """Build a header element although required children are absent: limits are empty, all else is None."""
    for field in dataclasses.fields(header_class):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.init and required and field.name not in values:
            values[field.name] = xsd.encodingLimitsType() if field.name == "encodingLimits" else None
    return header_class(**values)


_STRICT = ParserConfig(fail_on_unknown_properties=True, fail_on_converter_warnings=True)
_LENIENT = ParserConfig(fail_on_unknown_properties=False, class_factory=_create_with_gaps)


def _parse(text: str, config: ParserConfig) -> xsd.ismrmrdHeader:
    return XmlParser(config=config, context=_CONTEXT).from_bytes(text.encode("utf-8"), xsd.ismrmrdHeader)


def parse_header(text: str, longest: int = Limits.header) -> xsd.ismrmrdHeader | str:
    """MRD header from its XML, or the text itself when it is none.

    Parameters
    ----------
    text : str
        What a METADATA_XML_TEXT message or ``/<group>/xml`` of a file holds.
    longest : int, optional
        How long it may be [characters]; real headers have tens of thousands; a hostile one takes long to read.

    Returns
    -------
    ismrmrd.xsd.ismrmrdHeader or str
        The header; the unchanged text when it is too long, is no XML, has another root element than ``ismrmrdHeader``,
        or declares a document type (no MRD header does, and entities are a known attack).
    """
    if has_document_type(text):
        return text
    if len(text) > longest:
        logger.warning("A header of %d characters is passed on as text: more than %d are not read", len(text), longest)
        return text
    # The text has been decoded already, so an encoding named in its declaration no longer holds.
    xml = text.lstrip("\ufeff \t\r\n")
    if xml.startswith("<?xml"):
        xml = xml.partition("?>")[2]
    if not _IS_HEADER.match(xml):
        return text
    if NAMESPACE not in xml:
        xml = xml.replace("<ismrmrdHeader", f'<ismrmrdHeader xmlns="{NAMESPACE}"', 1)
    try:
        return _parse(xml, _STRICT)
    except (ParserError, ConverterError, TypeError, ValueError, SyntaxError) as error:
        reason = str(error)
    try:
        header = _parse(xml, _LENIENT)
    except (ParserError, ConverterError, TypeError, ValueError, SyntaxError) as error:
        logger.warning("The MRD header cannot be read (%s): it is passed on as text.", error)
        return text
    logger.info("The MRD header departs from the schema (%s): it is read as far as it goes.", reason)
    return header
