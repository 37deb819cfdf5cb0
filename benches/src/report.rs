//! The output of a benchmark: tables for people while it runs, and one line of JSON per figure at its end.

use std::fmt::Write;

/// A figure with what belongs to it, as one line of JSON.
#[derive(Debug)]
pub struct Line(String);

impl Line {
    /// The line of the figure `name`.
    #[must_use]
    pub fn new(name: &str) -> Line {
        Line("{".to_owned()).text("name", name)
    }

    /// Adds a text without characters that JSON would have to escape.
    #[must_use]
    pub fn text(mut self, key: &str, value: &str) -> Line {
        self.key(key);
        _ = write!(self.0, "\"{value}\"");
        self
    }

    /// Adds a number, with as many digits as mean something.
    #[must_use]
    pub fn number(mut self, key: &str, value: f64) -> Line {
        self.key(key);
        self.0.push_str(&digits(value));
        self
    }

    fn key(&mut self, key: &str) {
        if !self.0.ends_with('{') {
            self.0.push(',');
        }
        _ = write!(self.0, "\"{key}\":");
    }
}

/// Prints the lines, as the last thing a benchmark does.
pub fn print_lines(lines: &[Line]) {
    println!();
    for Line(line) in lines {
        println!("{line}}}");
    }
}

/// Prints a table: a heading above each column, a name before each row.
pub fn print_table(title: &str, columns: &[&str], rows: &[(String, Vec<Option<f64>>)]) {
    println!("\n{title}");
    let name_width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let width = columns.iter().map(|column| column.len()).max().unwrap_or(0).max(8) + 2;
    print!("{:name_width$}", "");
    for column in columns {
        print!("{column:>width$}");
    }
    println!();
    for (name, values) in rows {
        print!("{name:name_width$}");
        for value in values {
            print!("{:>width$}", value.map(digits).unwrap_or_default());
        }
        println!();
    }
}

/// Three digits after the point for small numbers, none for large or whole ones.
#[must_use]
pub fn digits(value: f64) -> String {
    match value.abs() {
        size if size.fract() == 0.0 => format!("{value:.0}"),
        size if size < 10.0 => format!("{value:.3}"),
        size if size < 1_000.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
