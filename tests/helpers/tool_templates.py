"""Chat templates that know tools, with the control tokens of MobileMoE."""

HERMES = """\
{%- if tools %}<|header_start|>system<|header_end|>

{% for tool in tools %}{{ tool | tojson }}
{% endfor %}
For each call write <tool_call>{"name": NAME, "arguments": ARGUMENTS}</tool_call>.<|eot|>{% endif %}
{%- for message in messages %}<|header_start|>{{ message.role }}<|header_end|>

{{ message.content }}
{%- for call in message.tool_calls %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|eot|>{% endfor %}
{%- if add_generation_prompt %}<|header_start|>assistant<|header_end|>

{% endif %}"""
LLAMA = """\
{%- for message in messages %}<|header_start|>{{ message.role }}<|header_end|>

{% if loop.first and tools %}To call a function, answer {"name": NAME, "parameters": {...}}.
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}
{%- if message.tool_calls %}
{%- set function = message.tool_calls[0].function %}
{{- '{"name": "' + function.name + '", "parameters": ' }}{{ function.arguments | tojson }}}{% else %}
{{- message.content }}{% endif %}<|eot|>{% endfor %}
{%- if add_generation_prompt %}<|header_start|>assistant<|header_end|>

{% endif %}"""
