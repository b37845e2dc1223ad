//! Settings of a line: data bits, parity and stop bits in one word, as in `8N1`.

use tokio_serial::{DataBits, FlowControl, Parity, SerialPort, SerialPortBuilder, StopBits};

use crate::config::intake::{Flow, Serial};

/// Data bits, parity and stop bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    data_bits: DataBits,
    parity: Parity,
    stop_bits: StopBits,
}

impl Line {
    /// Reads `8N1`, `7E1`, `8O2`, ...
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no line setting; data bits 5-8, parity N, E or O, stop bits 1 or 2, as in \"8N1\"");
        let [data, parity, stop] = text.as_bytes() else { return Err(wrong()) };
        let data_bits = match data {
            b'5' => DataBits::Five,
            b'6' => DataBits::Six,
            b'7' => DataBits::Seven,
            b'8' => DataBits::Eight,
            _ => return Err(wrong()),
        };
        let parity = match parity.to_ascii_uppercase() {
            b'N' => Parity::None,
            b'E' => Parity::Even,
            b'O' => Parity::Odd,
            _ => return Err(wrong()),
        };
        let stop_bits = match stop {
            b'1' => StopBits::One,
            b'2' => StopBits::Two,
            _ => return Err(wrong()),
        };
        Ok(Self { data_bits, parity, stop_bits })
    }

    /// How to open the port of these settings.
    pub(super) fn builder(self, config: &Serial) -> SerialPortBuilder {
        let flow = match config.flow {
            Flow::None => FlowControl::None,
            Flow::Software => FlowControl::Software,
            Flow::Hardware => FlowControl::Hardware,
        };
        tokio_serial::new(config.path.to_string_lossy(), config.baud)
            .data_bits(self.data_bits)
            .parity(self.parity)
            .stop_bits(self.stop_bits)
            .flow_control(flow)
    }

    /// What the port did not take over, in words; drivers may ignore a setting without an error.
    pub(super) fn not_taken(self, port: &dyn SerialPort, baud: u32) -> Option<String> {
        let mut wrong = Vec::new();
        let mut compare = |what: &str, wanted: String, got: Result<String, tokio_serial::Error>| match got {
            Ok(got) if got == wanted => {}
            Ok(got) => wrong.push(format!("{what} is {got} instead of {wanted}")),
            Err(error) => wrong.push(format!("{what} cannot be read back ({error})")),
        };
        let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
        compare("data bits", text(&self.data_bits), port.data_bits().map(|bits| text(&bits)));
        compare("parity", text(&self.parity), port.parity().map(|parity| text(&parity)));
        compare("stop bits", text(&self.stop_bits), port.stop_bits().map(|bits| text(&bits)));
        compare("baud", text(&baud), port.baud_rate().map(|baud| text(&baud)));
        (!wrong.is_empty()).then(|| wrong.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_settings() {
        let line = Line::parse("7e2").unwrap();
        assert_eq!(line, Line { data_bits: DataBits::Seven, parity: Parity::Even, stop_bits: StopBits::Two });
        assert!(Line::parse("8N1").is_ok());
        for bad in ["", "8N", "9N1", "8X1", "8N3", "8N1 ", "8N1.5", "éN"] {
            assert!(Line::parse(bad).unwrap_err().contains("8N1"), "{bad}");
        }
    }
}
