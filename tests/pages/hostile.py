"""A text that would run, load or rearrange something wherever a page took it for markup."""

HOSTILE = (
    "</script></style></textarea><script>window.injected = 1</script>"
    '<img src="http://attacker.invalid/x.png" onerror="window.injected = 1">'
    '" onfocus="window.injected = 1" autofocus \' <!-- ]]> {{ 7 * 7 }} &lt;b&gt; \u202e'
)
