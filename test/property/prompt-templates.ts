/**
 * Chat templates in the manner of common families, and one that uses what few do. Written for these tests; the
 * families' own belong to their models.
 */
export const chatTemplates: Readonly<Record<string, string>> = {
  chatml: `{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}`,

  trimming: `{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif -%}
{%- if tools is not none %}
{{- '<|im_start|>system\\n' }}
{%- if system %}{{ system + '\\n\\n' }}{% endif %}
{%- for tool in tools %}{{ tool | tojson(indent=4) }}{{ '\\n\\n' }}{% endfor %}
{{- '<|im_end|>' }}
{%- elif system %}{{ '<|im_start|>system\\n' ~ system ~ '<|im_end|>' }}
{%- endif %}
{%- for message in rest %}
{%- if message.role == 'assistant' and message.tool_calls is defined and message.tool_calls | length > 0 %}
{{- '<|im_start|>assistant\\n' }}
{%- for call in message.tool_calls %}
{{- '{"name": "' + call.function.name + '", "parameters": ' }}{{ call.function.arguments | tojson }}{{ '}' }}
{%- endfor %}{{ '<|im_end|>' }}
{%- elif message.role in ('tool', 'ipython') %}{{ '<|im_start|>ipython\\n' + (message.content | trim) + '<|im_end|>' }}
{%- else %}
{%- set content = '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' %}
{%- if loop.index0 == 0 and bos_token %}{% set content = bos_token + content %}{% endif %}
{{- content }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}`,

  strict: `{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate user and assistant') }}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'].strip(' \\n-') + ' [/INST]' }}{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}`,

  macros: `{%- macro turn(role, text, open=false) -%}
<|im_start|>{{ role }}
{{ text }}{% if not open %}<|im_end|>
{% endif %}
{%- endmacro %}
{%- set ns = namespace(seen=0, last='') %}
{%- for message in messages %}
{%- if message.role == 'system' and loop.index > 1 %}{% continue %}{% endif %}
{%- if ns.seen > 40 %}{% break %}{% endif %}
{%- set ns.seen = ns.seen + 1 %}
{%- set body %}{{ message.name ~ ': ' if message.name is defined else '' }}{{ message.content }}{% endset %}
{{- turn(message.role, body) }}
{%- set ns.last = message.role %}
{%- else %}nothing
{%- endfor %}
{%- if add_generation_prompt and ns.last != 'assistant' %}{{ turn(role='assistant', text='', open=true) }}{% endif %}`,

  reasoning: `{%- for message in messages %}
{%- set content = message.content %}
{%- if message.role == 'assistant' %}
{%- if message.reasoning_content is string %}{% set thought = message.reasoning_content %}
{%- elif '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1].strip() %}{% set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- else %}{% set thought = '' %}{% endif %}
{{- '<|im_start|>assistant\\n' }}{% if thought and loop.last %}{{ '<think>\\n' ~ thought ~ '\\n</think>\\n\\n' }}{% endif %}{{ content }}{{ '<|im_end|>\\n' }}
{%- elif content == 'ok' or content.endswith('!') %}{{ '<|im_start|>' ~ message.role ~ '\\n(' ~ content ~ ')<|im_end|>\\n' }}
{%- else %}{{ '<|im_start|>' ~ message.role ~ '\\n' ~ content | replace('<|im_end|>', '') ~ '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}`,

  parts: `{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}`,

  uncut: `{% for message in messages %}{{ '### ' + message.role | upper + ':\\n' + message.content + '\\n\\n' }}{% endfor %}{% if add_generation_prompt %}### ASSISTANT:
{% endif %}`,
};
