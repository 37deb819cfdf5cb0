// A step that changes what is around it: each attempt would change it again, and a replay would not.
//~ cannot assign to `attempts`, as it is a captured variable in a `Fn` closure

use callback_flows::{Flow, FlowResult};

pub async fn order(flow: Flow) -> FlowResult<u32> {
    let mut attempts = 0;
    let step = flow.step("offer").run(|_| {
        attempts += 1;
        std::future::ready(Ok::<_, std::io::Error>(attempts))
    });
    Ok(step.await?)
}
