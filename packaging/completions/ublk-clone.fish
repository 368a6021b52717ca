# Completion of ublk-clone for fish: ublk-clone itself knows what may come next.

function __ublk_clone_complete
    set -l words (commandline -opc)
    set -l found ($words[1] complete -- $words[2..-1] (commandline -ct) 2>/dev/null)
    if string match -q ':files*' -- $found
        __fish_complete_path (commandline -ct)
    else
        printf '%s\n' $found
    end
end

complete -c ublk-clone -f -a '(__ublk_clone_complete)'
