#compdef ublk-clone
# Completion of ublk-clone for zsh: ublk-clone itself knows what may come next.

local line word
local -a found keys
for line in "${(@f)$("${words[1]}" complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
	word=${line%%$'\t'*}
	case $word in
	'') ;;
	:files) _files && return ;;
	*=) keys+=("$word") ;;
	*) found+=("${word//:/\\:}:${line#*$'\t'}") ;;
	esac
done
[ ${#keys} = 0 ] || compadd -S '' -- "${keys[@]}"
[ ${#found} = 0 ] || _describe -V ublk-clone found
