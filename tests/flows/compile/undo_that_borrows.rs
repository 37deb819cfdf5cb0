// A step that undoes another and borrows what its flow will have dropped by then.
//~ `name` does not live long enough
//~ argument requires that `name` is borrowed for `'static`

use callback_flows::{Flow, FlowResult};

pub async fn order(flow: Flow) -> FlowResult<()> {
    let name = String::from("seat");
    let name = &name;
    flow.undo("seat", move |_| {
        let seat = name.clone();
        async move {
            drop(seat);
            Ok::<_, std::io::Error>(())
        }
    });
    Ok(())
}
