//! Rendering details that templates rely on.

use super::*;

fn date(text: &str) -> Date {
    text.parse().unwrap()
}

fn compiled(source: &str) -> ChatTemplate {
    ChatTemplate::compile(source, &vec![("bos_token", "<s>".to_owned())], date("2025-03-07")).unwrap()
}

fn rendered(source: &str) -> String {
    let turns = [Turn { role: "user".into(), content: " <b> & 'ü' ".into() }];
    compiled(source).render(&turns, true).unwrap()
}

#[test]
fn block_lines_leave_no_whitespace_behind() {
    assert_eq!(rendered("{% for m in messages %}\n    {% if true %}\nx\n    {% endif %}\n{% endfor %}\n"), "x\n");
}

#[test]
fn variables_and_python_methods_are_there() {
    assert_eq!(rendered("{{ bos_token }}{{ messages[0].content.strip() }}"), "<s><b> & 'ü'");
    assert_eq!(rendered("{{ messages[-1]['role'].upper() }}{{ messages[0].get('x', 'none') }}"), "USERnone");
    assert_eq!(rendered("{% if tools is none and add_generation_prompt %}y{% endif %}"), "y");
    assert_eq!(rendered("{% if messages[0].tool_calls is defined %}y{% else %}n{% endif %}"), "n");
}

#[test]
fn tojson_writes_what_python_writes() {
    assert_eq!(rendered("{{ messages | tojson }}"), r#"[{"role": "user", "content": " <b> & 'ü' "}]"#);
    assert_eq!(
        rendered("{{ {'a': [1, 2.5, none]} | tojson(indent=2) }}"),
        "{\n  \"a\": [\n    1,\n    2.5,\n    null\n  ]\n}"
    );
}

#[test]
fn dates_are_those_given() {
    assert_eq!(rendered("{{ strftime_now('%d %b %Y, %A %-d.%-m.%y %H:%M') }}"), "07 Mar 2025, Friday 7.3.25 00:00");
    for (day, name) in [("2024-02-29", "Thursday"), ("2000-01-01", "Saturday"), ("1999-12-31", "Friday")] {
        assert_eq!(date(day).format("%A").unwrap(), name, "{day}");
    }
    assert_eq!(Date::default(), date("2024-07-26"));
    for wrong in ["2023-02-29", "2024-13-01", "2024-00-10", "24-01-01", "2024-1-1", "2024-01-32", "today", "+024-01-01"]
    {
        assert!(wrong.parse::<Date>().is_err(), "{wrong}");
    }
    let refused = compiled("{{ strftime_now('%c') }}").render(&[], false).unwrap_err();
    assert!(refused.to_string().contains("directive"), "{refused}");
}

#[test]
fn generation_marks_render_as_their_content() {
    assert_eq!(rendered("a {%- generation -%} b {%- endgeneration %}{% if true %}c{% endif %}"), "abc");
    assert_eq!(rendered("no block {% generation %}x{% endgeneration %} {{ 'generation' }}"), "no block x generation");
}

#[test]
fn wrong_templates_say_where() {
    let error = ChatTemplate::compile("x\n{% if %}", &vec![], Date::default()).err().unwrap();
    assert!(error.contains(":2"), "{error}");
    let raised = compiled("{{ raise_exception('no system turns') }}").render(&[], false).unwrap_err();
    assert!(raised.to_string().ends_with("no system turns"), "{raised}");
}
