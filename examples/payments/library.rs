//! The scripts, in the program itself: a run has a library of its own, and changes a script in it on the way.

use std::io;
use std::path::Path;

macro_rules! scripts {
    ($($name:literal)*) => { [$(($name, include_str!(concat!("flows/", $name, ".rhai")))),*] };
}

/// All scripts, by their names.
pub(crate) const SCRIPTS: [(&str, &str); 22] = scripts!(
    "by_answers" "catalog" "catalog_by_answers" "checkout" "checkout_by_answers" "control"
    "new_create_coupon_error" "new_create_coupon_response"
    "new_create_customer_error" "new_create_customer_response"
    "new_create_payment_intent_error" "new_create_payment_intent_response"
    "new_create_price_error" "new_create_price_response"
    "new_create_product_error" "new_create_product_response"
    "new_create_refund_error" "new_create_refund_response"
    "new_create_subscription_error" "new_create_subscription_response"
    "subscribe" "sure"
);

/// The script that is changed on the way, the line of it that is, and that line from then on.
const CHANGED: (&str, &str, &str) = ("checkout", "let edition = \"1\";", "let edition = \"2\";");

/// Writes all scripts into a directory.
///
/// # Errors
/// If they cannot be written.
pub(crate) fn write(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    SCRIPTS.iter().try_for_each(|(name, text)| std::fs::write(directory.join(format!("{name}.rhai")), text))
}

/// Changes one of them, as whoever deploys the next edition does: flows that have begun keep the text that they began with.
///
/// # Errors
/// If it is not there as it was written, or cannot be written.
pub(crate) fn change(directory: &Path) -> io::Result<()> {
    let (name, old, new) = CHANGED;
    let file = directory.join(format!("{name}.rhai"));
    let text = std::fs::read_to_string(&file)?;
    if !text.contains(old) {
        return Err(io::Error::other(format!("{} has no line {old}", file.display())));
    }
    // A host that reads it meanwhile has the one text or the other.
    let next = file.with_extension("next");
    std::fs::write(&next, text.replace(old, new))?;
    std::fs::rename(next, file)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use callback_flows::{Flows, UrlKeys};
    use reqwest::Url;

    use super::*;
    use crate::service;
    use crate::stripe::{Account, RESOURCES};
    use crate::wire::Wire;

    #[test]
    fn every_script_of_the_example_is_in_the_program_and_each_resource_has_a_script_for_either_answer() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("payments/flows");
        let files = std::fs::read_dir(folder).expect("it is there");
        let files: BTreeSet<_> = files.map(|file| file.expect("it is readable").file_name()).collect();
        let known: BTreeSet<_> = SCRIPTS.iter().map(|(name, _)| format!("{name}.rhai").into()).collect();
        assert_eq!(files, known);
        for object in RESOURCES.map(|resource| resource.object) {
            for answer in ["response", "error"] {
                let name = format!("new_create_{object}_{answer}");
                assert!(SCRIPTS.iter().any(|(known, _)| *known == name), "{name}");
            }
        }
    }

    #[test]
    fn every_script_compiles_as_it_is_and_as_it_is_changed_on_the_way() {
        let directory = tempfile::tempdir().expect("a directory");
        write(directory.path()).expect("it can be written");
        for is_changed in [false, true] {
            if is_changed {
                change(directory.path()).expect("its line is there");
            }
            let wire = Wire::new(&Url::parse("http://127.0.0.1:1").expect("a URL")).expect("a way");
            let account = Account::new(wire, "sk_test_1");
            let keys = UrlKeys::new("drill", "a drill has no secrets").expect("a key");
            let mut flows = Flows::builder().callbacks("http://127.0.0.1:1/callbacks", keys);
            let scripts = service::scripts(directory.path(), account, directory.path().join("canary"));
            scripts.register(&mut flows).expect("they compile");
        }
    }
}
