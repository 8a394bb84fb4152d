//! Instructions that are too long: they raise #GP where undefined ones raise #UD.

use iced_x86::{Code, Decoder, DecoderError};

use crate::host_unsafe::decoder_options;

use super::{MAX_INSTRUCTION_BYTES, Request};

/// Whether what stands at `offset` of the request's code, and was not decoded, goes on past the bytes that an instruction
/// may have. Prefixes that repeat others or name a segment change nothing of the rest: if the instruction without one
/// of them needs as many bytes as there may be, it is too long with it.
pub(super) fn is_too_long(request: &Request<'_>, offset: usize) -> bool {
    let Some(bytes) = request.code.get(offset..offset + MAX_INSTRUCTION_BYTES) else { return false };
    let prefixes = bytes.iter().take_while(|&&byte| is_prefix(byte, request.is_compat()));
    let prefixes = bytes.get(..prefixes.count()).unwrap_or_default();
    if prefixes.len() == MAX_INSTRUCTION_BYTES {
        return true;
    }
    let is_needless = |(n, byte): (usize, &u8)| {
        is_segment(*byte) || is_rex(*byte) && n + 1 < prefixes.len() || prefixes.iter().skip(n + 1).any(|b| b == byte)
    };
    let Some(needless) = prefixes.iter().enumerate().position(is_needless) else { return false };
    let mut rest = bytes.to_vec();
    rest.remove(needless);
    let mut decoder = Decoder::new(request.bitness(), &rest, decoder_options());
    decoder.decode().code() == Code::INVALID && decoder.last_error() == DecoderError::NoMoreBytes
}

fn is_segment(byte: u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65)
}

fn is_rex(byte: u8) -> bool {
    byte & 0xf0 == 0x40
}

fn is_prefix(byte: u8, is_compat: bool) -> bool {
    is_segment(byte) || matches!(byte, 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3) || !is_compat && is_rex(byte)
}
