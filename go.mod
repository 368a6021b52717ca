module github.com/ublk-clone/ublk-clone

go 1.26
