//! The syntax tree of a script: what it names, and what it calls that is not there. The only module that looks into Rhai's tree, whose
//! form a new version may change: so the version is pinned.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rhai::{AST, ASTNode, Engine, Expr, FnCallExpr, Position, Stmt};

/// Functions that Rhai itself knows, or that take any number of arguments.
const OF_THE_LANGUAGE: [&str; 12] = [
    "call",
    "curry",
    "debug",
    "eval",
    "export",
    "import",
    "is_def_fn",
    "is_def_var",
    "is_shared",
    "print",
    "this",
    "type_of",
];
/// Functions of the usual design, and what is done in their place.
const PORTED: [(&str, &str); 2] = [
    ("init_flows", "the host registers flows: `ScriptFlows::builder().library(dir).register(&mut flows_builder)?;`"),
    (
        "configure_stripe",
        "keys are the host's: `ScriptFlows::builder().call(\"stripe.payment_intents.create\", move |cx, arguments| ..)`",
    ),
];

/// All that a script names and calls.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The texts in it that stand alone.
    pub(super) literals: BTreeSet<String>,
    pub(super) calls: Vec<Called>,
    /// The functions that it defines, with the numbers of their parameters.
    functions: HashMap<String, BTreeSet<usize>>,
    /// The names of fields that it sets or reads: such a field may hold a closure.
    fields: BTreeSet<String>,
}

/// A call in a script.
#[derive(Debug)]
pub(super) struct Called {
    pub(super) name: String,
    /// The number of its arguments, the object of a method call not among them.
    arguments: usize,
    is_method: bool,
    position: Position,
}

/// Looks at all of a script.
pub(super) fn look(ast: &AST) -> Seen {
    let mut seen = Seen::default();
    for function in ast.iter_functions() {
        seen.functions.entry(function.name.to_owned()).or_default().insert(function.params.len());
    }
    ast.walk(&mut |path: &[ASTNode<'_>]| {
        match path.last() {
            Some(ASTNode::Expr(expression)) => seen.expression(expression),
            Some(ASTNode::Stmt(Stmt::FnCall(call, position))) => seen.call(call, *position, false),
            _ => {}
        }
        true
    });
    seen
}

impl Called {
    pub(super) fn position(&self) -> Position {
        self.position
    }
}

impl Seen {
    fn expression(&mut self, expression: &Expr) {
        match expression {
            Expr::StringConstant(text, _) => drop(self.literals.insert(text.to_string())),
            Expr::FnCall(call, position) => self.call(call, *position, false),
            Expr::MethodCall(call, position) => self.call(call, *position, true),
            Expr::Property(property, _) => drop(self.fields.insert(property.2.to_string())),
            Expr::Map(fields, _) => self.fields.extend(fields.0.iter().map(|(name, _)| name.name.to_string())),
            _ => {}
        }
    }

    fn call(&mut self, call: &FnCallExpr, position: Position, is_method: bool) {
        if call.op_token.is_none() && call.namespace.is_empty() {
            let (name, arguments) = (call.name.to_string(), call.args.len());
            self.calls.push(Called { name, arguments, is_method, position });
        }
    }
}

/// The functions that every script may call, with the numbers of their parameters.
#[derive(Debug, Default)]
pub(super) struct Known(BTreeMap<String, BTreeSet<usize>>);

impl Known {
    /// All that an engine has.
    pub(super) fn of(engine: &Engine) -> Known {
        let all = engine.collect_fn_metadata(
            None,
            |function| Some((function.metadata.name.to_string(), function.metadata.num_params)),
            true,
        );
        let mut known = Known::default();
        for (name, parameters) in all {
            known.0.entry(name).or_default().insert(parameters);
        }
        known
    }

    /// The first call of a script that nothing answers to: its place and the reason.
    pub(super) fn missing_in(&self, seen: &Seen) -> Option<(Position, String)> {
        seen.calls.iter().find_map(|call| self.missing(seen, call).map(|reason| (call.position, reason)))
    }

    fn missing(&self, seen: &Seen, call: &Called) -> Option<String> {
        let Called { name, arguments, is_method, .. } = call;
        if let Some((_, instead)) = PORTED.iter().find(|(ported, _)| ported == name) {
            return Some(format!("`{name}(..)` has no place in a script; remove it: {instead}"));
        }
        let of_host = self.0.get(name);
        let of_script = seen.functions.get(name);
        if OF_THE_LANGUAGE.contains(&&**name) || name.starts_with("anon$") {
            return None;
        }
        if *is_method && seen.fields.contains(name) {
            return None;
        }
        let there = |functions: Option<&BTreeSet<usize>>, number: usize| {
            functions.is_some_and(|functions| functions.contains(&number))
        };
        if there(of_host, arguments + usize::from(*is_method)) || there(of_script, *arguments) {
            return None;
        }
        let call = if *is_method { format!(".{name}(..)") } else { format!("{name}(..)") };
        let plural = |number: usize| if number == 1 { "1 argument".to_owned() } else { format!("{number} arguments") };
        let mut numbers = of_script.cloned().unwrap_or_default();
        let object = usize::from(*is_method);
        numbers.extend(of_host.into_iter().flatten().filter_map(|number| number.checked_sub(object)));
        let Some(numbers) = (!numbers.is_empty()).then_some(numbers) else {
            return Some(format!("there is no function `{call}`"));
        };
        let numbers: Vec<_> = numbers.iter().map(usize::to_string).collect();
        let numbers = numbers.join(" or ");
        Some(format!("`{call}` is called with {}, and takes {numbers}", plural(*arguments)))
    }
}
