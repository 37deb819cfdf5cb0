//! Two builds in turns: what a turn measured, and what the ratios of many pairs of turns say.
//!
//! The median of the ratios has an interval that needs no assumption about how they are spread: each ratio lies below the true
//! median with a probability of one half, so the number that does is binomial, and the k-th smallest and k-th largest of them
//! enclose the median with a known confidence (order statistics; Conover, *Practical Nonparametric Statistics*, 3.2).

use crate::measure::median;

/// The confidence of [`median_interval`].
pub const CONFIDENCE: f64 = 0.95;

/// The fewest values whose median has an interval: of five all lie on one side of it too often.
pub const FEWEST: usize = 6;

/// The narrowest pair of these values that encloses the median of whatever they were drawn from with [`CONFIDENCE`]; `None` for
/// less than [`FEWEST`] values.
#[must_use]
pub fn median_interval(values: &[f64]) -> Option<(f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let depth = depth(sorted.len())?;
    Some((sorted[depth - 1], sorted[sorted.len() - depth]))
}

/// The greatest k for which the k-th value from each end encloses the median with [`CONFIDENCE`].
fn depth(count: usize) -> Option<usize> {
    let most = (1.0 - CONFIDENCE) / 2.0;
    // The probability that no more than so many of them lie below the median; binomial, computed term by term.
    let mut term = 0.5_f64.powi(i32::try_from(count).ok()?);
    let mut below = 0.0;
    let mut depth = 0;
    while below + term <= most && 2 * (depth + 1) <= count {
        below += term;
        depth += 1;
        term *= (count + 1 - depth) as f64 / depth as f64;
    }
    (depth > 0).then_some(depth)
}

/// The figure of one turn: the median of all that its output gives, whatever it was measured in.
///
/// A figure is `"ours":124.3` in a line of JSON, or a line like `124.3 ns`. `None` if there is none.
#[must_use]
pub fn figure(output: &str) -> Option<f64> {
    let figures: Vec<_> = output.lines().filter_map(figure_of_line).filter(|figure| *figure > 0.0).collect();
    (!figures.is_empty()).then(|| median(&figures))
}

fn figure_of_line(line: &str) -> Option<f64> {
    let line = line.trim();
    if line.starts_with('{') {
        let json: serde_json::Value = serde_json::from_str(line).ok()?;
        return json.get("ours")?.as_f64();
    }
    line.strip_suffix(" ns")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(count: u32) -> Vec<f64> {
        (1..=count).map(f64::from).collect()
    }

    #[test]
    fn the_interval_of_a_median_lies_where_the_tables_have_it() {
        // k for 95 % by count, as tabulated for the sign test.
        for (count, k) in
            [(6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (17, 5), (20, 6), (21, 6), (25, 8), (30, 10), (51, 19)]
        {
            let (low, high) = median_interval(&first(count)).expect("there are enough");
            assert_eq!((low, high), (f64::from(k), f64::from(count + 1 - k)), "of {count}");
        }
        assert_eq!(median_interval(&first(5)), None);
        assert_eq!(median_interval(&[]), None);
        assert!(
            median_interval(&first(1_001))
                .is_some_and(|(low, high)| (469.0..=471.0).contains(&low) && high == 1_002.0 - low)
        );
    }

    #[test]
    fn the_order_of_the_values_does_not_matter_and_outliers_hardly_do() {
        let mut values = first(21);
        values.reverse();
        values[0] = 1e9;
        assert_eq!(median_interval(&values), Some((6.0, 16.0)));
    }

    #[test]
    fn the_interval_encloses_the_median_as_often_as_it_says() {
        // Xorshift (Marsaglia, 2003), as numbers from 0 to 1, whose median is one half.
        let mut random = 0x9E37_79B9_7F4A_7C15_u64;
        let mut draw = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 11) as f64 / (1_u64 << 53) as f64
        };
        let encloses = |values: Vec<f64>| median_interval(&values).is_some_and(|(low, high)| low <= 0.5 && 0.5 <= high);
        let found = (0..10_000).filter(|_| encloses((0..21).map(|_| draw()).collect())).count();
        // 97.3 % with 21 values: the next narrower pair would be below 95 %.
        assert!((9_650..=9_800).contains(&found), "{found} of 10,000");
    }

    #[test]
    fn a_figure_is_read_from_json_from_lines_for_people_and_from_an_output_that_was_cut_off() {
        assert_eq!(figure("{\"name\":\"ask_one\",\"runtime\":\"current\",\"ours\":124.3}\n"), Some(124.3));
        assert_eq!(figure("130.0 ns\n110.0 ns\n120.0 ns\n12"), Some(120.0));
        assert_eq!(figure("120.0 ns\n\n{\"name\":\"ask_one\",\"ours\":120.0}\n{\"name\":\"as"), Some(120.0));
        assert_eq!(figure("usage: ask [--quick]\n"), None);
        assert_eq!(figure("0.0 ns\n"), None, "nothing takes no time");
    }
}
