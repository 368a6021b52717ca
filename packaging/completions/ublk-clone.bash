# Completion of ublk-clone for bash: ublk-clone itself knows what may come next.

_ublk_clone() {
	local cur=${COMP_WORDS[COMP_CWORD]} reply
	COMPREPLY=()
	[ "$cur" != = ] || cur=
	reply=$("${COMP_WORDS[0]}" complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null) || return 0
	reply=$(cut -f 1 <<<"$reply")
	if [ "$reply" = :files ]; then
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		return 0
	fi
	mapfile -t COMPREPLY < <(compgen -W "$reply" -- "$cur")
	[[ ${COMPREPLY[0]-} != *= ]] || compopt -o nospace 2>/dev/null
}

complete -F _ublk_clone ublk-clone
