# Chow-Liu trees: the maximum spanning tree of mutual information, and its centre.

"""
    chow_liu_tree(mi) -> parent

Maximum spanning tree of a symmetric `(V, V)` matrix (Prim's algorithm, Chow and Liu 1968), rooted at its centre:
`parent[i]` is the parent of variable i, 0 for the root. Ties go to the lower index.
"""
function chow_liu_tree(mi::AbstractMatrix{<:Real})
    V = size(mi, 1)
    neighbours = [Int[] for _ in 1:V]
    best, link, outside = fill(-Inf, V), zeros(Int, V), trues(V)
    next = 1
    for _ in 1:V
        outside[next] = false
        if link[next] != 0
            push!(neighbours[next], link[next])
            push!(neighbours[link[next]], next)
        end
        candidate = 0
        for i in 1:V
            outside[i] || continue
            if mi[next, i] > best[i]
                best[i], link[i] = mi[next, i], next
            end
            if candidate == 0 || best[i] > best[candidate]
                candidate = i
            end
        end
        next = candidate
        pause(10 * V)
    end
    return rooted(neighbours, centre(neighbours))
end

"Parents of all nodes of the tree when it hangs from `root`, and the nodes in the order of their distance from it."
function hang(neighbours, root)
    parent, order = zeros(Int, length(neighbours)), [root]
    for i in order, j in neighbours[i]  # `order` grows while it is walked: breadth first
        if j != parent[i]
            parent[j] = i
            push!(order, j)
        end
    end
    return parent, order
end

rooted(neighbours, root) = hang(neighbours, root)[1]

"The middle of a longest path."
function centre(neighbours)
    one_end = hang(neighbours, 1)[2][end]
    parent, order = hang(neighbours, one_end)
    path = [order[end]]
    while parent[path[end]] != 0
        push!(path, parent[path[end]])
    end
    return path[(length(path) + 1) ÷ 2]
end
